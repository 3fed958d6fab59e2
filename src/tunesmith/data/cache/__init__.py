"""Prepared rows on disk: large sources laid flat, kept from run to run until a token of them would change."""
