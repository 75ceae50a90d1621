"""An exam for small models: tasks with exactly checkable answers, verdicts, and what they prove.

Knows the engine. Does not know tenants, policies or a gateway.
"""
