"""Which tokens of a row are learned: of a conversation, of a row cut to length, of one of which none is."""
