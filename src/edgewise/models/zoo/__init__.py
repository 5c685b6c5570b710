"""Small torch models for demos, benchmarks and tests. Import a file of it only where torch is installed.

`exits.py` has the demo's multi-exit network and the joint loss, `dense.py` the MLP of Job S, `branched.py` two graphs
with shared tensors.
"""
