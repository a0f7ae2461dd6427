# SPDX-License-Identifier: MIT
table = tables.'/learned_continuous.tsv'
title = 'LearnedContinuous: dim = 64, depth = 2, norm = true, divide = 64'
names = '"at init" "trained on positions left of the dashes"'
tokens = 128
features = 64
feature = 'feature'
value = 'added to x'
eval colours(4.0)
trained = 64
load 'examples/gallery/features.gnuplot'
