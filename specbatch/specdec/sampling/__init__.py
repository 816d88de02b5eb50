"""From logits to tokens: the one transform, the draw, and whether rounding could have changed it. No model, no rows."""
