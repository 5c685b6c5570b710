"""Fuzzing of whatever a stranger or a damaged disk may give: `python -m tests.fuzz`, or `make fuzz`.

target.py     what is fuzzed: seeds, a way to change them, the function that must take or refuse the result
of_*.py       the targets, a file per kind
mutate.py     changes of bytes and of trees: huge numbers, deep nesting, splices, what is missing
worker.py     one child process: inputs of one target, within its bounds of time and memory
campaign.py   both cores: shares the inputs out, watches the children, writes down what fails
"""
