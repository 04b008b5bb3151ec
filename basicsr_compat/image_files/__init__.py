"""Parts of the one reader, `basicsr_compat.images`: kinds of files, and what Pillow makes of them."""
