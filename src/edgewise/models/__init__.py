"""What is trained and served: the task contract, the ONNX graph, a small zoo, model versions."""
