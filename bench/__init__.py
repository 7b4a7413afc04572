"""Speed and memory, measured on this machine as ratios: `python -m bench data`."""
