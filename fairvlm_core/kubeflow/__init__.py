"""What only a run on Kubeflow needs, without kfp: components call it, and it calls the steps."""
