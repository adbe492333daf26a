"""Label stores in and out of other tools' files. What a format cannot hold is said in docs/label-store.md."""
