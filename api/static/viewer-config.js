// Configuration of the viewer (OHIF): the archive that served this page, and nothing else.
'use strict';
window.PUBLIC_URL = document.currentScript.dataset.root;
window.browserImportFunction = address => import(address);

// When the session is over: to the log-in, and from there back here. OHIF's own handler does not hear of images.
const heard = status => status === 401 && location.reload();
const theirFetch = window.fetch;
window.fetch = async (...request) => {
  const answer = await theirFetch(...request);
  heard(answer.status);
  return answer;
};
const theirSend = XMLHttpRequest.prototype.send;
XMLHttpRequest.prototype.send = function (...body) {
  this.addEventListener('load', () => heard(this.status));
  return theirSend.apply(this, body);
};

// Key images (IHE KIN): what each key object of a study selects is shown as a stack of its own, beside the series.
const KEY_OBJECT_SELECTION = '1.2.840.10008.5.1.4.1.1.88.59';
const QUIET_MS = 2000; // after which series whose metadata did not come are not waited for: they were rejected, or purged

const itemsOf = sequence => [sequence ?? []].flat();

// The images that a key object selects in its own study: [SOP Instance UID, Series Instance UID].
const selectedBy = note =>
  itemsOf(note.CurrentRequestedProcedureEvidenceSequence)
    .filter(study => study.StudyInstanceUID === note.StudyInstanceUID)
    .flatMap(study => itemsOf(study.ReferencedSeriesSequence))
    .flatMap(series =>
      itemsOf(series.ReferencedSOPSequence).map(one => [one.ReferencedSOPInstanceUID, series.SeriesInstanceUID])
    );

let patience, subscription;
const keyImages = {
  id: 'minipacs.key-images',
  onModeEnter({ servicesManager, extensionManager }) {
    const { displaySetService } = servicesManager.services;
    const stack = extensionManager.getModuleEntry('@ohif/extension-default.sopClassHandlerModule.stack');
    const shown = new Set();
    const show = complete => {
      const instances = displaySetService.getActiveDisplaySets().flatMap(one => one.instances ?? []);
      const known = new Map(instances.map(one => [one.SOPInstanceUID, one]));
      const there = new Set(instances.map(one => one.SeriesInstanceUID));
      for (const note of known.values()) {
        if (note.SOPClassUID !== KEY_OBJECT_SELECTION || shown.has(note.SOPInstanceUID)) {
          continue;
        }
        const wanted = selectedBy(note);
        const found = wanted.map(([uid]) => known.get(uid)).filter(one => one?.Rows);
        if (found.length === 0 || !(complete || wanted.every(([, series]) => there.has(series)))) {
          continue;
        }
        shown.add(note.SOPInstanceUID);
        const title = `Images clés : ${itemsOf(note.ConceptNameCodeSequence)[0]?.CodeMeaning ?? 'KO'}`;
        const { SeriesInstanceUID, SeriesNumber } = note;
        for (const made of stack.getDisplaySetsFromSeries(found)) {
          made.setAttributes({ SeriesInstanceUID, SeriesNumber, SeriesDescription: title, label: title });
          made.setAttributes({ isReconstructable: false, countIcon: undefined }); // a selection is no volume
          displaySetService.addDisplaySets(made);
        }
      }
    };
    subscription = displaySetService.subscribe(displaySetService.EVENTS.DISPLAY_SETS_ADDED, () => {
      clearTimeout(patience);
      patience = setTimeout(show, QUIET_MS, true);
      show(false);
    });
  },
  onModeExit() {
    clearTimeout(patience);
    subscription?.unsubscribe();
  },
};

window.config = {
  name: 'minipacs',
  routerBasename: '/viewer',
  extensions: [keyImages],
  modes: [],
  customizationService: {},
  showStudyList: true,
  maxNumberOfWebWorkers: 3,
  showWarningMessageForCrossOrigin: true,
  showCPUFallbackMessage: true,
  showLoadingIndicator: true,
  strictZSpacingForVolumeViewport: true,
  groupEnabledModesFirst: true,
  allowMultiSelectExport: false,
  investigationalUseDialog: { option: 'never' }, // says nothing of this archive; the README says what it is not
  maxNumRequests: { interaction: 100, thumbnail: 5, prefetch: 25 },
  showErrorDetails: 'always',
  httpErrorHandler: () => {}, // it has to be there; see above
  defaultDataSourceName: 'minipacs',
  dataSources: [
    {
      namespace: '@ohif/extension-default.dataSourcesModule.dicomweb',
      sourceName: 'minipacs',
      configuration: {
        friendlyName: 'minipacs',
        name: 'minipacs',
        qidoRoot: '/dicom-web',
        wadoRoot: '/dicom-web',
        wadoUriRoot: '/wado',
        qidoSupportsIncludeField: true,
        imageRendering: 'wadors',
        thumbnailRendering: 'wadors',
        enableStudyLazyLoad: true,
        supportsFuzzyMatching: false,
        supportsWildcard: true,
        singlepart: 'bulkdata,video',
        bulkDataURI: { enabled: true },
        omitQuotationForMultipartRequest: true,
      },
    },
  ],
};
