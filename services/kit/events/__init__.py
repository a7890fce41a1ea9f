"""Facts on their way: written down here, shipped to Kafka, read back in batches."""
