"""ONNX in: reading, the canonical float graph, its quantization points and its blocks."""
