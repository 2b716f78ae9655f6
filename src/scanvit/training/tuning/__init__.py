"""The search for a recipe: which settings may change, which trials are tried, and what the best of them was."""
