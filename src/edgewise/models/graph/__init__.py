"""The ONNX graph as a value: loading, names, cutting, condensing, widening, weights."""
