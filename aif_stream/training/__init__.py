"""Training: data sets, the loop, evaluation. Serving never imports this room."""
