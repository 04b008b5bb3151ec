"""Photos in and out, for `basicsr upscale`. Needs no BasicSR."""
