"""Parts of the image reader, `basicsr_compat.images`: kinds of files, pixels, and metadata."""
