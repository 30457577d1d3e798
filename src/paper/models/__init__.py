"""Models: classifiers, CLIPs and their zero-shot scores, each a module from pixels in [0,1]."""
