"""The figures behind the decisions in docs/adr: ``python -m bench.adr_figures NAME``, or ``all``.

Each module measures the alternative that was chosen beside the alternatives that were rejected, in one run, after it
has shown that all alternatives carry the same content. Each prints its tables and returns the same numbers. Figures
of different runs are not comparable.
"""
