"""Who holds which examples: splits, the embedded digits, data found through EDGEWISE_DATA, streams, the audit."""
