"""The passes of normalisation that rewrite nodes; each keeps what the model computes."""
