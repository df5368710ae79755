"""The model embedding: what a fit returns, and the networks it renders."""

from __future__ import annotations

from dynamo_plugin.embedding.fitting import fit
from dynamo_plugin.embedding.model_embedding import ModelEmbedding
from dynamo_plugin.embedding.rendered import RenderedNetwork
from dynamo_plugin.embedding.saving import load_embedding, save_embedding

__all__ = ["ModelEmbedding", "RenderedNetwork", "fit", "load_embedding", "save_embedding"]
