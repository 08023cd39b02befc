"""The only owner of onnxruntime: sessions, what they execute, how fast, and on which machine."""
