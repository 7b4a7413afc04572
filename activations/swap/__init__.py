"""Put activations into a network: find its calls, place new modules there, match old functions."""
