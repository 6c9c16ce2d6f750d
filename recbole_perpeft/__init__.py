"""Multimodal sequential recommendation with personalised parameter-efficient fine-tuning, for RecBole."""

__version__ = "0.1.0"
