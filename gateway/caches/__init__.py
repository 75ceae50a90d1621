"""Answers given before: by identical bytes (``exact``) or by the same meaning (``semantic``)."""
