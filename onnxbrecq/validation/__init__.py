"""What a quantized model is worth: accuracy, fidelity, parity, integer coverage, and the gate."""
