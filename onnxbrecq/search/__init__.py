"""Mixed precision: what bits cost, what they lose, and the best of them for a budget."""
