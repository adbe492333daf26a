"""The label store: Parquet shards of labels and confidence codes, manifest, sidecar tables."""
