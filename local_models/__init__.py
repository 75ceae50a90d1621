"""Local models on ONNX Runtime: generation and embeddings. Knows no tenant and no gateway."""
