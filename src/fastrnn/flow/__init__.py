"""How gradients flow through time: ``fastrnn.gradient_flow`` (``products.py``), what it returns, its pictures, and the
one layer under study, which it shares with its twin in ``fastrnn.reference``."""
