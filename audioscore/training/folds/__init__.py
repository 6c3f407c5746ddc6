"""Cross-validation: folds of whole singers, and the fits of all folds at once."""
