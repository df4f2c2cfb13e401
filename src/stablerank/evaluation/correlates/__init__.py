"""What a score goes with: text metrics, correlations with length held fixed, and changes made on purpose."""
