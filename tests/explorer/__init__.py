"""An explorer of small worlds: every interleaving of a few processes and faults, to a depth, and random walks.

    python -m tests.explorer --minutes 30                 # all worlds; prints states, depth and violations
    python -m tests.explorer --replay cell "A:pause, event, 8 s, A, new reader"

The processes run the product's own step functions on doubles of the servers and on one simulated clock. Each call of a
server is a point at which a process can be paused, can lose its reply, or can die (``processes``). A *world* says which
choices exist in its present state, carries one out, and judges the invariants after it (``cell_world``,
``scheduling_world``). The *search* takes all sequences of choices, shortest first, and merges states that are equal
(``search``). A sequence of choices that breaks an invariant is a *counterexample*; it repeats exactly.
"""
