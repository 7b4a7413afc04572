"""Speed and memory on this machine, as ratios to a reference that is measured in the same run.

    python -m bench activations   every activation: time and memory against ReLU and SiLU
    python -m bench step          a training step of whole networks: the same
    python -m bench infer         inference by torch, ONNX Runtime and OpenVINO: the same
    python -m bench loop          what Lightning, our callbacks and the loggers add to a bare loop
    python -m bench data          data sets: time to prepare, memory, samples a second
    python -m bench start         from the command to the first step of training
    python -m bench gpu           all that a GPU can tell, in a few minutes

Each has its own --help. What is compared takes turns, in a new random order in each round, so that
other jobs on the machine disturb all of it alike. Times are medians, `least` is the shortest, and
`spread_percent` is half the interquartile range in % of the median. `processor` is processor time,
which other jobs disturb less than elapsed time. `a_to_b` is the quantity a, divided by that of b.
"""
