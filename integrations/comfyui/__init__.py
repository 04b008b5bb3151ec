"""Nodes for ComfyUI that restore images with ITER (arXiv:2312.05616). Copy this folder into ComfyUI/custom_nodes."""

from .nodes import LoadITER, RestoreITER

NODE_CLASS_MAPPINGS = {"LoadITER": LoadITER, "RestoreITER": RestoreITER}
NODE_DISPLAY_NAME_MAPPINGS = {"LoadITER": "Load ITER", "RestoreITER": "Restore with ITER"}

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"]
