"""The figures behind the decisions in docs/adr: ``python -m bench.adr_figures NAME``, or ``all``."""
