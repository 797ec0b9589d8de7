"""Published weights in the Hugging Face layout, both ways: one mapping table a family, one file format."""
