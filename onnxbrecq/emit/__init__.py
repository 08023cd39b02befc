"""ONNX out: where quantizers stand, how weights are stored, what a target allows."""
