// Starts the page. `explorer` is for the console and for tests: the numbers that the page computes.

import { Explorer, simulate, tourState } from "./app.js";
import { Discriminator, Generator } from "./learned.js";
import { energyDistance } from "./measures.js";
import { kernelScore, medianDistance } from "./kernels.js";
import { Adam, Network } from "./networks.js";
import { OBJECTIVES } from "./objectives.js";
import { bandwidth, modelName, onPlane, Path, PlaneFlow } from "./plane.js";
import { keyedNormals, Stream } from "./random.js";
import { showRun, TrainedScore } from "./runs.js";
import { SAMPLE_FIELDS, sampleField } from "./samples.js";
import { fromFragment, RUNS, toFragment } from "./settings.js";
import { SOLVERS, Workspace } from "./solvers.js";
import { openTarget } from "./targets.js";
import { TOUR } from "./tour.js";

globalThis.explorer = {
  page: new Explorer(),
  Adam,
  bandwidth,
  Discriminator,
  energyDistance,
  fromFragment,
  Generator,
  kernelScore,
  keyedNormals,
  medianDistance,
  modelName,
  Network,
  OBJECTIVES,
  onPlane,
  openTarget,
  Path,
  PlaneFlow,
  simulate,
  RUNS,
  SAMPLE_FIELDS,
  sampleField,
  showRun,
  SOLVERS,
  Stream,
  TOUR,
  toFragment,
  tourState,
  TrainedScore,
  Workspace,
};
