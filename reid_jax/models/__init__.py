"""Networks: layers, backbones, ReID heads, the CLUB estimator and weight files."""
