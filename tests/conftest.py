"""What holds for every test."""

from hypothesis import settings

# A property is right or wrong, not fast or slow: a busy machine takes 500 ms for what takes 1.
settings.register_profile("any machine", deadline=None)
settings.load_profile("any machine")
