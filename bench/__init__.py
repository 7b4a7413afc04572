"""Speed and memory, as ratios within one run: `python -m bench activations`."""
