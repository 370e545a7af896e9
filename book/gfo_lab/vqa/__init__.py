"""Questions about pictures: easy-VQA and VQA v2."""

from gfo_lab.vqa import easy_vqa, vqa_v2

__all__ = ["easy_vqa", "vqa_v2"]
