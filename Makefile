# Foresight: each stage is a script, each gate a decision. `make help` lists the targets and the defaults.
# cmd.<file> makes a file, which needs what the command names, and in.<file>. It is made again when one of
# them is newer or the command is another (<file>.args); after an edit of a script, only what is CHEAP.
MODEL ?= tiny
MODELS ?= tiny tiny-semantic tiny-llava-next tiny-internvl2 tiny-cogvlm2 tiny-dinov2
DATA ?= shapes
SEED ?= 0
COMPARED := $(if $(filter screen,$(MAKECMDGOALS)),$(MODELS))
FIRST := $(firstword $(COMPARED) $(MODEL))# SMALL: is it a small model of this project, or tuned from one?
SMALL := $(filter tiny%,$(FIRST))$(shell grep -s '^weights: small' $(FIRST)/weights.yaml)
VAE ?= $(if $(SMALL),tiny-vae,ltx)
ENCODER ?= $(if $(SMALL),tiny-dinov2,dinov2-l)
VIDEO ?= $(if $(SMALL),tiny-ltx,ltx-video)
LM ?= $(if $(SMALL),tiny-words,tinyllama)
FROZEN ?= first middle
POINTS ?= quarters
FORMAT ?= voc
PLANTED_POINTS ?= $(if $(filter-out tiny tiny-semantic,$(MODEL)),quarters,vision.3,merger,language.1)
SIZES ?= $(if $(SMALL),64 96 144,$(if $(filter llava% internvl% cogvlm2%,$(notdir $(MODEL))),,224 336) 448)
PAST ?= $(if $(SMALL),8,9)
HORIZON ?= 16
FRAMES ?= $(shell expr $(PAST) + $(HORIZON))
ADAPT ?= $(if $(SMALL),--lr 2e-3)
SCALING ?= $(if $(SMALL),--warm 8 --epochs 3)
ABLATION ?= $(if $(SMALL),--loss latents --warm 4 --epochs 4)
WORDS ?= $(if $(filter tiny%,$(notdir $(LM))),,--lr 2e-4)
KEEP ?= data/shapes$(DRAWN)
TUNE ?= $(if $(filter tiny,$(MODEL)),--method full --lr 1e-3 --batch 8 --epochs 6)
GRIDS ?= $(if $(SMALL)$(filter moving%,$(DATA)),all,middle)# where tokens of moving clips are stored
PY ?= .venv/bin/python
SETUP := $(if $(filter .venv/%,$(PY)),.venv/.installed)
help:  ## this list, and the defaults in force
	@grep -hE '^[a-z0-9 -]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([^:]+):.*## /  make \1\t/' | expand -t 20
	@echo; $(foreach v,MODEL MODELS DATA N SEED VAE ENCODER VIDEO POINTS SIZES PAST HORIZON,echo "  $v=$($v)";)
# ---- folders: other N and SEED are part of the name, data/shapes-n40-s1. FEW: N counts generated items too
TAG := $(N:%=-n%)$(patsubst -s0,,-s$(SEED))
GENERATED := shapes moving future trajectories trajectories-8 operations
FEW := $(filter $(GENERATED),$(DATA))$(shell test 0$(N) -gt 0 -a 0$(N) -lt 200 && echo few)
DRAWN := $(if $(FEW),$(TAG),$(patsubst -s0,,-s$(SEED)))
D := $(DATA)$(TAG)
instead = $(if $(filter shapes,$(DATA)),$1$(DRAWN),$D)
CLIP := $(call instead,future)
TAUGHT := $(call instead,operations)
MOVING := moving$(DRAWN)
TRAJECTORIES := trajectories$(DRAWN)
last_name := s:(/[0-9]+)+(/|$$):\2:g; s:/(adapter|model)$$::; s:.*/(.+)/(.+)/tuned$$:\1-\2-tuned:; s:.*/::
name = $(shell echo $(abspath $1) | sed -E '$(last_name)')# as common.py's folder_name
M := $(call name,$(MODEL))
S := $(call name,$(ENCODER))
PATHS := $(foreach m,$(MODEL) $(COMPARED) $(VAE) $(ENCODER),$(call name,$m)=$m)
path = $(firstword $(patsubst $1=%,%,$(filter $1=%,$(PATHS))))
R := results/$M/$D
P := results/$M/$(CLIP)
V := results/$(call name,$(VAE))/$D/features
MOTION := results/$M/$(MOVING)
TRACKS := results/$M/$(TRAJECTORIES)
SCREENED := $(foreach m,$(COMPARED),results/$(call name,$m)/$D)
# ---- data: generated, one's own under ROOT, or made from other clips
EDITS := reversed deleted swapped
ITEMS := $(if $(FEW),$(N:%=--n %))
CLIPS := $(if $(filter ssv2,$(DATA)),ssv2,$(filter clips,$(FORMAT)))
here = $(notdir $(@D))
part = $(lastword $(subst -, ,$(here)))
to = --seed $(SEED) --out $@
into = --seed $(SEED) --out $(@D)
write = data.py $1 --preview $(into)
cmd.own = $(call write,$(or $(CLIPS),$(FORMAT))) --root $(ROOT) $(ANNOTATIONS:%=--annotations %) $(N:%=--n %)\
	$(if $(CLIPS),--frames $(FRAMES) $(FPS:%=--fps %) $(CLIPSIZE:%=--size %)) $(SKIP_BAD:%=--skip-bad)
cmd.shapes = $(call write,shapes $(ITEMS))
cmd.moving = $(call write,moving $(ITEMS))
cmd.first = $(call write,moving --freeze $(part) --clips data/$(here:%-$(part)=%))
cmd.future = $(call write,moving --frames $(FRAMES) $(or $(ITEMS),--n 300))
cmd.past = data.py cut --clips data/$(here:%-$(part)=%) --first 0 --frames $(PAST) $(into)
cmd.last = data.py cut --clips data/$(here:%-$(part)=%) --first $(shell expr $(PAST) - 1) --frames 1 $(into)
cmd.trajectories = $(call write,trajectories $(ITEMS))
cmd.reversed = $(call write,trajectories --change $(part) --only test $(ITEMS))
cmd.trajectories-8 = data.py cut --clips data/$(TRAJECTORIES) --evenly --frames 8 $(into)
cmd.operations = operations.py read $(ROOT:%=--root %) $(N:%=--n %) --seed 42 --out $(@D) --preview
# ---- features: results/<model>/<data>/features, also <data>@<size>; features-random: the untrained network
model = $(word 2,$(subst /, ,$@))
data = $(word 3,$(subst /, ,$@))
points = $(if $(filter $(MODEL) $(COMPARED),$(call path,$(model))),$(POINTS),quarters)
F = results/$(model)/$(data)
how = $(addprefix --size ,$(word 2,$(subst @, ,$(data)))) $(if $(filter $(MOVING)%,$(data)),--single-frames 8)
tokens = $(or $(if $(filter $(MOVING),$(data)),$(GRIDS)),$(if $(filter $(MOVING)-%,$(data)),none),all)
encode = extract.py --model $(call path,$1) --data $2 $3 --overwrite $(REDUCE:%=--reduce %) $(EXTRACT) $(into)
features = $(call encode,$(model),data/$(firstword $(subst @, ,$(data))),$1 $(how) --grids $(tokens))
cmd.features/index.yaml = $(call features,--points $(points))
chosen = --points-of $F/probe-layers.yaml $(if $(filter $F,$R),$F/align-layers.yaml)
cmd.features-random/index.yaml = $(call features,--random-init $(chosen))
both = --features $1/features --random $1/features-random
frozen = $(if $(filter $(MOVING),$(data)),--frozen $(FROZEN:%=$F-%/features))
oracle = $(if $(filter-out $(MOVING),$(filter $D,$(data))),$V)
adapt = adapt.py $1 --latents $V --align $R/align.yaml --vae $(VAE) --evaluator $(ENCODER)
evaluate = gate.py evaluate $1 --results $(@D) --set "$(SET)" $(to)
cmd.probe-layers.yaml = $(if $(filter %-past,$(data)),$(ahead_of) --past $(PAST),probe.py --features\
	$F/features $(frozen)) --seed $(SEED) --choose $@
cmd.align-layers.yaml = align.py --features $F/features --target $V --seed $(SEED) --choose $@
cmd.probe.yaml = probe.py $(call both,$(@D)) $(oracle:%=--oracle %) $(frozen) $(to)
cmd.align.yaml = align.py $(call both,$(@D)) --target $V --study $(@D)/alignment-study.md $(to)
cmd.adapt-latents.yaml = $(call adapt,latents) $(call both,$R) $(to)
cmd.gate1.yaml = $(call evaluate,1) --motion $(MOTION) --encoder results/$S/$D\
	$(addprefix --reference ,$(wildcard results/qwen2.5-vl-7b/$D))
in.gate1.yaml = $(addsuffix /probe.yaml,$R $(MOTION) results/$S/$D) $R/align.yaml $R/adapt-latents.yaml
cmd.adapt-scaling.yaml = $(call adapt,scaling) --features $R/features $(ADAPT) $(SCALING) $(to)
cmd.adapt-ablation.yaml = $(call adapt,ablation) --features $R/features $(ADAPT) $(ABLATION)\
	--at $(patsubst %,$R@%/features,$(filter-out $(if $(SMALL),96,448),$(SIZES))) $(to)
cmd.adapt-hybrid.yaml = $(call adapt,hybrid) --features $R/features --random $R/features-random\
	--spatial results/$S/$D/features $(ADAPT) $(ABLATION) $(to)
cmd.adapt-prompt.yaml = adapt.py prompt --features $(@D)/features --video $(VIDEO) $(ADAPT) $(to)
cmd.video-coherence.yaml = video.py coherence --model $(VIDEO) --data data/$(MOVING) --evaluator $(ENCODER)\
	--adapter $(@D)/conditioning-prompt.pt $(or $(COHERENCE),$(if $(SMALL),--seeds 2 --strengths 0.5)) $(to)
in.video-coherence.yaml = $(MOTION)/adapt-prompt.yaml
G := $(MOTION)/generated
cmd.generated/answers.pt = explain.py ask --model $(MODEL) --data $(@D) $(to)
in.generated/answers.pt = $(MOTION)/video-coherence.yaml
cmd.explain-semantic.yaml = explain.py semantic --generated $G --answers $G/answers.pt $(to)
cmd.gate2.yaml = $(call evaluate,2) --motion $(MOTION)
in.gate2.yaml = $(addprefix $R/adapt-,scaling.yaml ablation.yaml hybrid.yaml) $(MOTION)/explain-semantic.yaml
# ---- gate 3: does anything predict? gate 4: can pixels verify? On clips: DATA, or data/future
window = --data data/$(CLIP) --past $(PAST) --horizon $(HORIZON)
ahead = video.py $1 --model $(VIDEO) $(window) --evaluator $(ENCODER) $(to)
ahead_of = predict.py --features $P-past/features --last $P-last/features --data data/$(CLIP) --vae $(VAE)
cmd.predict-latents.yaml = $(ahead_of) --past $(PAST) --random $P-past/features-random\
	$(or $(PREDICT),$(if $(SMALL),--epochs 30)) $(to)
cmd.video-continue.yaml = $(call ahead,continue) $(CONTINUE)
cmd.video-futures.yaml = $(call ahead,futures) $(FUTURES)
cmd.explain-describe.yaml = explain.py describe --model $(MODEL) --generated $P/generated $(DESCRIBE) $(to)
in.explain-describe.yaml = $P/video-continue.yaml
cmd.gate3.yaml = $(call evaluate,3)
in.gate3.yaml = $(addprefix $P/,predict-latents.yaml video-futures.yaml explain-describe.yaml)
layers = $(if $(filter $M,$(here)),$(PLANTED_POINTS),$(if $(filter $S,$(here)),last,quarters))
VERIFIERS := $(foreach m,$(MODEL) $(ENCODER) $(VAE),$P/planted-features/$(call name,$m))
cmd.planted/index.yaml = verify.py plant $(window) --vae $(VAE) --generated $P/generated $(into)
in.planted/index.yaml = $P/video-continue.yaml
cmd.planted-features = $(call encode,$(here),$P/planted,--points $(layers) --grids all)
cmd.explain-planted.yaml = explain.py describe --model $(MODEL) --generated $P/planted --frames 16 $(to)
cmd.verify.yaml = verify.py score --rollouts $P/planted --latents $(VERIFIERS)\
	--words $P/explain-planted-actions.pt $(to)
in.verify.yaml = $(VERIFIERS:=/index.yaml) $P/explain-planted.yaml motion.py
cmd.gate4.yaml = $(call evaluate,4)
in.gate4.yaml = $P/verify.yaml
cmd.resolution.yaml = probe.py --compare $(SIZES:%=$R@%) $(to)
in.resolution.yaml = $(SIZES:%=$R@%/probe.yaml)
cmd.answers.pt = explain.py ask --model $(MODEL) --data data/$(data) $(to)
cmd.binding.yaml = explain.py binding --features $R/features --answers $R/answers.pt $(to)
cmd.tracks.pt = track.py --model $(or $(TRACKER),tiny-tracker) --data data/$(data) $(to)
facts = --embeddings $(TRACKS)/tracks.pt --data data/$(TRAJECTORIES) --language $(LM)
cmd.words/tune-words.yaml = tune.py words $(facts) $(WORDS) $(into)
cmd.explain-trajectories.yaml = explain.py trajectories $(facts) --words $(TRACKS)/words $(to)\
	--vlm $(or $(SEES),$(MODEL)) $(TUNED:%=--tuned %)\
	--changed $(foreach c,$(EDITS),$c=data/$(TRAJECTORIES)-$c:$(TRACKS)-$c/tracks.pt)
in.explain-trajectories.yaml = $(TRACKS)/words/tune-words.yaml $(EDITS:%=$(TRACKS)-%/tracks.pt)
cmd.tuned/tune.yaml = tune.py train --model $(MODEL) --data data/$(data) --keep $(KEEP) $(TUNE) $(into)
cmd.operations.yaml = operations.py score --data data/$(data) $(if $(SMALL),--batch 64) $(to)\
	--models $(MODEL) $(@D)/tuned/$(if $(filter full,$(TUNE)),model,adapter)
in.operations.yaml = $(@D)/tuned/tune.yaml
cmd.results/screen/screen.yaml = gate.py screen $(SCREENED) --set "$(SET)" $(into)
in.results/screen/screen.yaml = $(SCREENED:=/probe.yaml)
.SECONDEXPANSION:
CHEAP := probe%.yaml align%.yaml $(addsuffix .yaml,resolution gate% verify binding explain-semantic)\
	results/screen/screen.yaml
DISTRIBUTED := features% planted-features adapt-% predict-% words/% tuned/%
own = $(if $(ROOT),$(if $(filter-out operations$(TAG),$(filter $D,$(here))),own))
edit = $(patsubst middle,first,$(patsubst deleted,reversed,$(patsubst swapped,reversed,$(part))))
dataset = $(or $(own),$(filter $(GENERATED),$(here:%$(DRAWN)=%)),$(edit))
stage = $(if $(findstring /planted-features/,$@),planted-features,$(@:results/$(model)/$(data)/%=%))
key = $(if $(filter data/%,$@),$(dataset),$(stage))
command = $(strip $(cmd.$(key)))
stale = $(if $(command),$(if $(subst =$(command)=,,=$(if $(wildcard $@.args),$(shell cat $@.args))=),FORCE))
words = $(if $(filter own operations,$(key)),,$(filter-out $@ $(@D),$(command)))
files = $(filter results/%.yaml results/%/answers.pt results/%/tracks.pt,$(words))
folders = $(filter data/% results/%/features results/%/features-random results/%/planted,$(words))
code = $(if $(filter $(CHEAP),$(key)),$(word 1,$(command)) $(addsuffix .py,common stats metrics probes media))
more = $(and $(findstring features,$(key)),$(MEMORY:%=--max-memory %))$(and $(filter gate%,$(key)),>/dev/null)
stamped = $(foreach f,$(files),$(if $(filter %/align.yaml %-layers.yaml,$f),$(dir $f).$(notdir $f),$f))
needs = $(in.$(key)) $(folders:=/index.yaml) $(stamped) $(code) $(stale)
DATASETS := $(sort $D $(GENERATED:=$(DRAWN)) $(TAUGHT) $(addprefix $(MOVING)-,first middle)\
	$(EDITS:%=$(TRAJECTORIES)-%) $(CLIP)-past $(CLIP)-last)
STAGES := $(patsubst cmd.%,%,$(filter cmd.%.yaml cmd.%.pt,$(.VARIABLES)))
FOLDERS := $(foreach m,$(PATHS),$(addprefix results/$(word 1,$(subst =, ,$m))/,$(DATASETS) $(SIZES:%=$D@%)))
RESULTS := $(foreach f,$(FOLDERS),$(STAGES:%=$f/%)) $(VERIFIERS:=/index.yaml) results/screen/screen.yaml
$(DATASETS:%=data/%/index.yaml) $(sort $(RESULTS)): $$(needs) | $(SETUP) can
	$(if $(command),,$(error $@ does not exist; give ROOT=folder and FORMAT=, or DATA=shapes or DATA=moving))
	@mkdir -p $(@D)
	$(or $(if $(filter $(DISTRIBUTED),$(key)),$(LAUNCH)),$(PY)) $(command) $(more)
	@echo '$(command)' > $@.args
$(foreach s,align probe-layers align-layers,$(FOLDERS:%=%/.$s.yaml)): $$(@D)/$$(patsubst .%,%,$$(@F))
	+@test ! -e $< || grep -E '^(linear_r2_l|points)' $< | cmp -s - $@ || grep -E '^(linear_r2_l|points)' $< >$@
can: | $(SETUP) ; @$(PY) -m answering '$(MAKECMDGOALS)' '$(or $(COMPARED),$(MODEL))' '$(SEES)'
.venv/.installed: requirements.txt
	test -x .venv/bin/pip || python3 -m venv .venv; .venv/bin/pip install --quiet -r requirements.txt && touch $@
gate1: $R/gate1.yaml  ## do the latents suffice? every stage for MODEL on DATA, then the verdict
gate2: $R/gate2.yaml  ## is a small adapter enough, does a second encoder help, is the motion natural?
gate3: $P/gate3.yaml  ## does anything predict better than copying the last frame?
gate4: $P/gate4.yaml  ## can a prediction be verified in its pixels, better than in latents or in words?
screen: results/screen/screen.yaml  ## which of MODELS? probes of each on DATA, then the comparison
gate1 gate2 gate3 gate4 screen:
	@$(PY) gate.py show $< $(STRICT:%=--strict)
	@grep -sHoE '^(extract|adapt|predict|video).py' $(foreach d,$R $P $(MOTION),$d/*.args $d/*/*.args) |\
		while IFS=: read f s;do f=$${f%.args}; test $$s -nt $$f && echo "warning: $$s is newer than $$f"; done; true
align: $R/align.yaml  ## where MODEL is like the decoder's latents: align.yaml, align.png, alignment-study.md
resolution: $R/resolution.yaml  ## probes at the SIZES in pixels, paired item by item with the first
binding: $R/binding.yaml  ## what a probe reads of place (DATA=moving: of motion), and what the model answers
explain: $(TRACKS)/explain-trajectories.yaml  ## is what LM says about objects that come, go and hide true?
tune: results/$M/$(TAUGHT)/$(if $(TAUGHT:operations%=),tuned/tune,operations).yaml  ## MODEL learns DATA
align resolution binding explain tune: ; @sed '/^[a-z_]*:$$/,$$d' $<
all: gate1 gate2 gate3 gate4 report  ## gates 1 to 4 for MODEL, and then the report
report: ; $(PY) report.py --results results --out results/report.html  ## results/report.html and summary.md
cost: ; $(PY) extract.py --cost --model $(MODEL) $(GATE:%=--gate %) $(REDUCE:%=--reduce %)  ## hours, disk
kaggle: ; $(PY) tests/notebook.py --repository "$(REPOSITORY)" --out results/foresight.ipynb  ## one notebook
plan: ; $(PY) tune.py plan --models $(MODEL) $(PLAN)  ## what fine-tuning MODEL needs of memory
test test-fast: ; $(PY) -m pytest -q -n2 --dist loadfile tests $(if $(findstring -,$@),-m "not slow") ## tests
test-gpu: ; FORESIGHT_TEST_GPU=1 $(PY) -m pytest -q -m gpu tests  ## the tests of a GPU
bench bench-gpu calibrate rehearse: ; $(PY) tests/$(subst -,_,$@).py  ## speed, errors of gate 1, real sizes
clean: ; git clean -qfdX data results  ## remove data/ and results that are not part of the repository
report cost kaggle plan test test-fast test-gpu bench bench-gpu calibrate rehearse: | $(SETUP)
.PHONY: help gate1 gate2 gate3 gate4 screen align resolution binding explain tune all report cost kaggle plan\
	test test-fast test-gpu bench bench-gpu calibrate rehearse clean can FORCE
