# SPDX-License-Identifier: MIT
# The look that all pictures share. `picture` is where to draw, set by ./run gallery; `tables` where the numbers are.
# Every picture is 1280 wide, and its letters can be read at half of that.
set encoding utf8
ink = '#333333'
start(pixels) = sprintf("height = %d; set terminal pngcairo noenhanced size 1280,%d font 'DejaVu Sans,16'", \
  pixels, pixels)
set border 31 linewidth 1 linecolor rgb ink
set tics out nomirror scale 0.6 textcolor rgb ink
set title offset 0,-0.6 textcolor rgb ink
set key textcolor rgb ink

# Blue below zero, red above. In OKLab lightness falls evenly from 0.98 in the middle to 0.38 at both ends, at hues 258
# and 32, so that equal steps look equal. Grey is minus infinity: what is hidden.
set palette maxcolors 256 defined ( \
  -8 '#063e88', -7 '#0a52ad', -6 '#2869c5', -5 '#4a81d2', -4 '#6b99df', -3 '#8bb1e9', -2 '#adc9f3', -1 '#d0e1f9', \
  0 '#f8f8f8', \
  1 '#f8d7d0', 2 '#efb8ad', 3 '#e39a8b', 4 '#d67c6b', 5 '#c65e4b', 6 '#b53e29', 7 '#9e200a', 8 '#7b1706')
set object 1 rectangle from graph 0,0 to graph 1,1 behind fillcolor rgb '#bfbfbf' fillstyle solid noborder
shown(value) = value > -1e30 ? value : NaN

# Colours end at `limit` on both sides, and so does what is beyond.
colours(limit) = sprintf("set cbrange [-%g:%g]; set cbtics ('≤ -%g' -%g, '-%g' -%g, '0' 0, '%g' %g, '≥ %g' %g)", \
  limit, limit, limit, limit, limit / 2, limit / 2, limit / 2, limit / 2, limit, limit)

# Places are in pixels, from the left and from the bottom, so that a number fills as many of them as any other.
pixels(x) = x / 1280.0
pixels_up(y) = y / real(height)
box(bottom, top, what) = sprintf("set colorbox user origin screen %g,%g size screen %g,%g; \
  set label 3 '%s' at screen %g,%g center rotate textcolor rgb ink", \
  pixels(1166), bottom, pixels(20), top - bottom, what, pixels(1262), (bottom + top) / 2)
place(left, right, bottom, top) = sprintf( \
  "set lmargin at screen %.9g; set rmargin at screen %.9g; set bmargin at screen %.9g; set tmargin at screen %.9g", \
  left, right, bottom, top)
heading(text) = sprintf("set label 1 \"%s\" at screen 0.5,%g center font ',19' textcolor rgb ink", text, \
  pixels_up(height - 30))
