"""The page of `basicsr web`: restores a visitor's photo and shows how (ITER, arXiv:2312.05616). Needs Gradio."""
