"""What else could hold the state of nodes, each reached by its best native way; ``scenario`` measures them."""
