// The texts of the page in English and Chinese, and the current language.

const TEXTS = {
  en: {
    title: "Singing score",
    lead: "Record or upload singing, and get a score on the 50–99 scale of human raters.",
    language: "中文",
    languageLabel: "切换到中文",
    token: "Access token (from the operator of this service)",
    heading: "Recording {number}",
    record: "Record",
    stop: "Stop",
    choose: "Choose a file",
    drop: "or drop a file here",
    clear: "Clear",
    again: "Try again",
    cancel: "Cancel",
    recording: "Recording… {time}",
    scoring: "Scoring…",
    score: "Score",
    interval: "{level} % interval: {low} to {high}",
    band: "Score band: {low} to {high}.",
    below: "Below {low}, the lower limit of the scale.",
    above: "Above {high}, the upper limit of the scale.",
    scale: "Score {score} on a scale from {from} to {to}; interval {low} to {high}.",
    chart: "Score over time: minimum {low}, maximum {high}. Dashed line: score of the whole recording.",
    caption: "Score over time; each point covers about 10 seconds. Dashed line: score of the whole recording.",
    segments: "Score over time (table)",
    span: "Time",
    undrawn: "This browser cannot play or display this file.",
    comparison: "Comparison",
    higher: "Recording {better} scores {points} points higher than recording {worse}.",
    same: "Both recordings have the same score.",
    overlap: "The intervals overlap: the difference may be within the scoring error.",
    apart: "The intervals do not overlap.",
    privacy: "The page only uploads the recording. The service deletes it after scoring.",
    model: "Model: {name}{version}, plan {plan}. Maximum per recording: {minutes} minutes, {megabytes} MB.",
    loading: "The service is starting and loads its model.",
    unreachable: "The service does not respond. Check the network connection.",
    noMicrophone: "No microphone was found. Connect a microphone, or choose a file.",
    denied: "The browser has no permission to use the microphone. Allow it in the site settings, or choose a file.",
    insecure: "Browsers can only record on https pages or on pages of this computer. Choose a file.",
    notRecorded: "Recording with the microphone failed ({reason}). Choose a file.",
    status400: "The service could not read the upload. Reload the page and try again.",
    status401: "The access token is missing or wrong. Enter it above and try again.",
    status408: "The upload was too slow. Try again, or with a shorter recording.",
    status413: "The recording is too large: the maximum is {megabytes} MB. Choose a shorter recording.",
    status429: "The service is busy. Try again in {seconds} seconds.",
    status503: "The service is starting or stopping. Try again in a moment.",
    statusOther: "Service error ({status}). Try again later.",
  },
  zh: {
    title: "歌声评分",
    lead: "录制或上传一段演唱，获得人工评分标准下 50–99 分的评分。",
    language: "English",
    languageLabel: "Switch to English",
    token: "访问令牌（请向服务管理员索取）",
    heading: "录音 {number}",
    record: "开始录音",
    stop: "停止",
    choose: "选择文件",
    drop: "或将录音文件拖到这里",
    clear: "清除",
    again: "重试",
    cancel: "取消",
    recording: "正在录音：{time}",
    scoring: "正在评分……",
    score: "分数",
    interval: "{level}% 区间：{low} 至 {high}",
    band: "所在分数段：{low} 至 {high}。",
    below: "低于分数范围的下限 {low} 分。",
    above: "高于分数范围的上限 {high} 分。",
    scale: "{score} 分（分数范围 {from} 至 {to}），区间 {low} 至 {high}。",
    chart: "分数随时间的变化：最低 {low}，最高 {high}。虚线为整段录音的分数。",
    caption: "分数随时间的变化，每个点约对应 10 秒。虚线：整段录音。",
    segments: "各时间段的分数（表格）",
    span: "时间",
    undrawn: "浏览器无法播放此文件，也无法显示波形。",
    comparison: "对比",
    higher: "录音 {better} 比录音 {worse} 高 {points} 分。",
    same: "两段录音分数相同。",
    overlap: "两个区间有重叠：差异可能在评分误差之内。",
    apart: "两个区间没有重叠。",
    privacy: "页面只上传录音，服务在评分后删除录音。",
    model: "模型：{name}{version}，方案 {plan}。单段录音最长 {minutes} 分钟，最大 {megabytes} MB。",
    loading: "服务正在启动，模型加载中。",
    unreachable: "服务没有响应，请检查网络连接。",
    noMicrophone: "没有找到麦克风。请接入麦克风，或选择文件。",
    denied: "浏览器没有麦克风权限。请在网站设置中允许，或选择文件。",
    insecure: "浏览器只允许在 https 页面或本机页面上录音。请选择文件。",
    notRecorded: "无法使用麦克风录音（{reason}）。请选择文件。",
    status400: "服务无法识别上传的内容。请刷新页面后重试。",
    status401: "访问令牌缺失或不正确。请在上方填写后重试。",
    status408: "上传太慢。请重试，或换一段较短的录音。",
    status413: "录音太大：最大 {megabytes} MB。请换一段较短的录音。",
    status429: "服务繁忙，请在 {seconds} 秒后重试。",
    status503: "服务正在启动或停止，请稍后重试。",
    statusOther: "服务出错（{status}），请稍后重试。",
  },
};

const STORAGE_KEY = "audioscore-language";
let current = storedLanguage() ?? (navigator.language.toLowerCase().startsWith("zh") ? "zh" : "en");

export function language() {
  return current;
}

/** Switch to the other language, and store the choice in the browser. */
export function switchLanguage() {
  current = current === "zh" ? "en" : "zh";
  try {
    localStorage.setItem(STORAGE_KEY, current);
  } catch {
    // Without storage, the next visit uses the browser's language.
  }
}

/** A text in the current language, with values for its `{names}`. */
export function text(key, values = {}) {
  return TEXTS[current][key].replace(/\{(\w+)\}/g, (_, name) => values[name]);
}

/** Set the text of all elements under `root` with a `data-text` attribute. */
export function fillTexts(root) {
  for (const element of root.querySelectorAll("[data-text]")) {
    element.textContent = text(element.dataset.text);
  }
}

/** 75.4 -> "1:15" */
export function clock(seconds) {
  const whole = Math.floor(seconds + 1e-6);
  return `${Math.floor(whole / 60)}:${String(whole % 60).padStart(2, "0")}`;
}

function storedLanguage() {
  try {
    const stored = localStorage.getItem(STORAGE_KEY);
    return stored in TEXTS ? stored : null;
  } catch {
    return null;
  }
}
