"""Orders to agents: boots and their answers, terminations, hint updates, and the repair of unfinished operations.

Each kind of order has a module of its own: ``boot`` (the state of one boot) and ``boot_tracker`` (all boots under way),
``termination_orders``, ``supersession``, ``hint_updates``. ``order_sender`` sends them, ``order_tracker`` holds one of
each for a scheduler, and ``reconciler`` finds operations that a dead scheduler left unfinished.
"""
