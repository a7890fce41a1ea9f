"""Prometheus metrics of the retriever, beside those of every service."""

from prometheus_client import Counter, Histogram

from services.kit.metrics import DURATION_BUCKETS

SEARCH = Histogram(
    "downstack_retriever_search_seconds",
    "Duration of searches, embedding included.",
    ("mode",),
    buckets=DURATION_BUCKETS,
)
SCANS = Counter("downstack_retriever_vector_scans", "Comparisons of embeddings by plan.", ("scan",))
FALLBACKS = Counter(
    "downstack_retriever_vector_fallbacks", "Searches along the index that found too little and were made exact."
)
EMBED = Histogram(
    "downstack_retriever_embed_seconds",
    "Duration of embedding, waiting included.",
    ("kind",),
    buckets=DURATION_BUCKETS,
)
EMBEDDED = Counter("downstack_retriever_embedded_texts", "Texts embedded.", ("kind",))
CHUNKS = Counter("downstack_retriever_chunks_ingested", "Passages stored.")
DOCUMENTS = Counter("downstack_retriever_documents_ingested", "Documents ingested.", ("outcome",))
