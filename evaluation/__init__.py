"""How good is it? Held-out scores, and a trained network as an object to ask."""
