"""The stages of a request: one verb per file, ``(Exchange, Services) -> None``.

A stage may be a coroutine where it must wait. Stages never import each other; their order is
``gateway/pipeline.py``.
"""
